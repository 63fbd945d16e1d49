"""What a trained model is worth: evaluated, probed, asked for predictions, drawn."""
