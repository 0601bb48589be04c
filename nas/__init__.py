"""Search, training and service: the commands and the parts that tie the other packages together."""
