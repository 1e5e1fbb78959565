"""How good is a schedule that nobody makes? The real rules on a recorded or modelled workload, beside central queues."""
