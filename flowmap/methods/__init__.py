"""The methods of the core: each a function of keyword hyper-parameters that returns a `Method`."""
