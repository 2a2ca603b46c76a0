"""DeepSpeed: the only room that knows it, with `machine/collectives`."""
