"""What all pages are made with: the frame, the style sheet, the scripts, and how values and drawings stand in them."""
