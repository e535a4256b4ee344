"""From the command line to trained weights, over the real fabric, functions and mongod."""
