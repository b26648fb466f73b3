"""What an architecture can do: experiments of one size, trained on small tasks, as a scorecard."""
