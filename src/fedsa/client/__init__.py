"""What happens where the rows are: a site takes in what the server sent, trains, measures, and hands back updates."""
