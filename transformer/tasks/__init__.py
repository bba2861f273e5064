"""What is learnt: one file per objective."""
