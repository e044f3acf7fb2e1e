"""Tokens of an OpenID Connect provider, for `/admin`."""
