"""Models in folders as they are published: config.json, model.safetensors, tokenizer.json."""

from transformer.zoo.pretrained.preprocessing import image_processor as image_processor
from transformer.zoo.pretrained.preprocessing import sound_processor as sound_processor
from transformer.zoo.pretrained.reading import load_pretrained as load_pretrained
from transformer.zoo.pretrained.reading import load_tokenizer as load_tokenizer
from transformer.zoo.pretrained.reading import read_model_config as read_model_config
from transformer.zoo.pretrained.writing import save_pretrained as save_pretrained
