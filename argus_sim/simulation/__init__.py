"""The simulated host: carries out the engine's commands on a SimPy cluster."""
