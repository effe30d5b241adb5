"""What is shown to people: counts with their nouns, short texts, names made safe."""
