"""Metrics of rankings, computed by trec_eval; needs the extra `retrieval`."""

from collections.abc import Callable, Sequence

from transformer.evaluation.text import Score, check_pairs

RANKING = {  # names of trec_eval
  'recall_at_1': 'recall_1',
  'recall_at_5': 'recall_5',
  'recall_at_100': 'recall_100',
  'reciprocal_rank': 'recip_rank',
  'mean_average_precision': 'map',
  'ndcg_at_10': 'ndcg_cut_10',
}


def ranking_metric(name: str, measure: str) -> Callable[[Sequence[str], Sequence[str]], Score]:
  """Return a metric of rankings, the mean over queries, in percent.

  Its predictions are names of documents, best first; its references are names of the relevant
  documents with their gains, as in '12:4 184:1'.

  Args:
    name: name of the metric, for its signature.
    measure: its name in trec_eval.
  """

  def score(predictions: Sequence[str], references: Sequence[str]) -> Score:
    import pytrec_eval

    check_pairs(predictions, references)
    relevant = {
      str(i): {name: int(gain) for name, _, gain in (r.rpartition(':') for r in line.split())}
      for i, line in enumerate(references)
    }
    ranked = {
      str(i): {name: -float(rank) for rank, name in enumerate(line.split())}
      for i, line in enumerate(predictions)
    }
    results = pytrec_eval.RelevanceEvaluator(relevant, {measure}).evaluate(ranked)
    values = [next(iter(by_name.values())) for by_name in results.values()]
    # trec_eval leaves out queries without any answer
    value = 100 * sum(values) / len(references)
    return Score(value, f'{name}|trec_eval {measure}|n:{len(references)}')

  return score
