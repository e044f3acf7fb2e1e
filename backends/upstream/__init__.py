"""The hot path's lower half: connections to engines, their answers, the events in them."""
