import sys

# jsonschema, below nbformat, would build the grammar of a kind of address for a second, which no notebook needs.
sys.modules.setdefault("rfc3987_syntax", None)
