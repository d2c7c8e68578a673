"""Errands by name: what a node is asked, and how it says that it does not do it.

Nothing here imports torch or Flower.
"""

TRAIN, SCORE, PERSONALISE = ERRANDS = ("train", "score", "personalise")
ERRAND = "errand"  # in a query: what the node will be asked
# In place of an answer: a sentence and, where it is not the node that fails but its operator who
# does not allow what is asked, the code.
PROBLEM, PROBLEM_CODE, NOT_ALLOWED = "problem", "problem-code", "not-allowed"
