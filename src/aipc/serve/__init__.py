"""`aipc serve`: OpenAI's and Ollama's APIs in front of models that run in processes of their own."""
