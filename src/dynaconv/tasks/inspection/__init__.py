"""What a trained model does with a text: the filters that each token gets."""
