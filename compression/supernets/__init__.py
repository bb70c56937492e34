"""Networks that hold many networks: trained once, asked for the weights of any of them."""
