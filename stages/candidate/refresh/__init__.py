"""A release follows a grown catalogue; nothing is trained."""
