"""One folder per question: a script, its recorded result, its picture."""
