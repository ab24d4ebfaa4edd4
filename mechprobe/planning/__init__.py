"""What a run would cost: FLOP, memory, disk and time of every stage, from shapes, counts of tokens and rates of a device."""
