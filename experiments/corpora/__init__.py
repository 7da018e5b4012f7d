"""What preparing, counting, reading and training on texts larger than memory costs."""
