from .data.batches import Split as Split
from .data.batches import batch_at as batch_at
from .data.batches import split_tokens as split_tokens
from .data.corpus import Corpus as Corpus
from .data.corpus import load_corpus as load_corpus
from .data.corpus import read_corpus as read_corpus
from .data.tokenizer import ByteTokenizer as ByteTokenizer
from .data.tokenizer import CharTokenizer as CharTokenizer
from .generation.sampling import generate as generate
from .models.babygpt import BabyGPT as BabyGPT
from .models.bigram import Bigram as Bigram
from .models.bigram import count_chunks as count_chunks
from .models.bigram import count_matrix as count_matrix
from .models.grow import grow as grow
from .training.counts import fit_counts as fit_counts
from .training.evaluation import ContextEvaluator as ContextEvaluator
from .training.run import load_run as load_run
from .training.statistics import ExactEvaluator as ExactEvaluator
from .training.statistics import PairCounts as PairCounts
from .training.statistics import count_windows as count_windows
from .training.step import init_state as init_state
from .training.step import make_advance as make_advance

__version__: str
