"""Text in and out: prompt to token ids, token ids to text, and where an answer stops."""

from aipc.text.detokenize import Detokenizer
from aipc.text.logprobs import LogprobsOfText
from aipc.text.stop import StopFilter
from aipc.text.tokenizer import Text

__all__ = ["Detokenizer", "LogprobsOfText", "StopFilter", "Text"]
