import sys

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema, below nbformat, builds its grammar for a second and needs none
