"""For tests of editors, backbones and analyses: tiny models of the real classes, small settings."""
