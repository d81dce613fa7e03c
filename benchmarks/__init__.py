"""Each module measures one claim of the README beside its peer, in one run; `make bench` runs them."""
