"""Learning rules, one file each; `bilevel.energy` has their names."""
