"""OpenAI's wire format, as pure functions: requests read and edited, answers and errors checked and written."""
