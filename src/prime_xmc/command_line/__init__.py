"""The command line: what is done with arguments before Hydra reads them, the help, checks of values, messages."""
