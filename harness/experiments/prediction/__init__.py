"""A scaling curve drawn past the machines at hand."""
