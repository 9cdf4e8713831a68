"""From a call and a plan to launches: memory, their order, and what each kernel is given."""
