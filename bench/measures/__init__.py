"""One module for each measure: WHAT, FIGURES and `once`, see bench.measure."""
