def version(s): return "x"
