"""`harness predict`: a scaling curve drawn past the machines at hand."""
