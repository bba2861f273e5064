r"""Retrieval on Cranfield of the abstracts that answer a query, by embeddings and BM25 combined.

  python run.py --config=experiments/retrieval_cranfield.py
  python run.py --mode=evaluate --workdir=runs/retrieval_cranfield --config.decode.bm25=1   # BM25

Data, in data/cranfield: docs.jsonl.gz, queries.tsv and qrels.tsv (Cleverdon 1967; 1,400 abstracts,
150 of the queries). If they are in another folder, set both --config.data.dir and
--config.decode.collection, the file of documents.

No query is used for training or for choosing settings. Training pairs are the title and the rest of
an abstract, or a piece of an abstract and the rest (Lee et al. 2019). Checkpoints are chosen by the
titles of a tenth of the abstracts, which is not trained on. The two rankings are combined by
reciprocal ranks with the published constant 60.

Result (seed 0, 6 minutes on one CPU core), mean average precision on the 150 queries, without
documents of grade -1: embeddings 24.3, BM25 28.8 (published: 28.5), both 31.5; nDCG@10: 28.6, 34.5
and 37.3. Trained on all abstracts: 26.0 for embeddings and 32.0 for both.
"""

from ml_collections import ConfigDict

from transformer.training import config
from transformer.zoo import presets


def get_config() -> ConfigDict:
  c = config.for_task('retrieval')
  c.experiment = 'retrieval_cranfield'
  c.data.update(name='cranfield', dir=config.data_dir('cranfield'))
  c.data.update(train='documents[10%:]', val='documents[:10%]')  # titles: no query is used
  c.data.test = ('queries', 'queries[:50%]', 'queries[50%:]')
  c.data.update(max_length=192, batch_tokens=64 * 192, buckets=1)
  c.tokenizer.update(kind='wordpiece', vocab=4000, lowercase=True, sentinels=1)
  c.model.update(presets.TRANSFORMER_TINY, token_types=2, width=256, depth=1, feedforward=512)
  c.model.update(max_length=192, prenorm=True, norm='rms', position='rotary', pooling='mean')
  c.model.update(activation='gelu_tanh', dropout=0.2, dtype='auto')
  c.loss.update(symmetric=True, cloze=0.7)
  c.optimizer.update(name='muon', learning_rate=5e-3, warmup_steps=50, weight_decay=0.1)
  c.train.update(steps=400, log_every_steps=20, save_every_steps=100)
  c.eval.update(every_steps=100, samples=2, best='mean_average_precision')
  c.eval.metrics = ('mean_average_precision', 'ndcg_at_10', 'recall_at_100', 'reciprocal_rank')
  c.decode.update(collection=config.data_dir('cranfield/docs.jsonl.gz'), first=1000)
  c.decode.update(bm25=0.5, fusion='ranks', batch_size=64)
  return c
