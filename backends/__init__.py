"""How: what Penstock knows of engines. `backend.py` is the seam; every engine answers in OpenAI's shape."""
