"""All servers that flowmapsr can use, as processes of one user on one machine."""
