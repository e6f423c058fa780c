"""How the demo model is made: its data, tokenizer, network, measurement and model card."""
