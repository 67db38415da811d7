"""What the encoder knows of rate and distortion: sensitivities, code lengths, training, and the search along them."""
