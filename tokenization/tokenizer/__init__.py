"""A tokenizer's files, its Hugging Face form, and the engines that encode with it."""
