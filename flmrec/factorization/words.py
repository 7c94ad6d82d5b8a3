"""The words of a text as they stand: names, brands and series that a language model reads past. numpy only."""

import numpy as np
import scipy.sparse as sp

from flmrec.factorization.histories import Ints

_FEWEST = 2  # known texts that a token has to be in


def word_rows(input_ids: np.ndarray, n_tokens: np.ndarray, known: Ints) -> sp.csr_matrix:
    """(n, V) unit rows of 0 or log(known texts / those with the token), float32; a row without text is zero.

    input_ids: (n, L), right-padded, of (n,) n_tokens; known: rows whose texts are counted. What every text has, such as
    the tokenizer's marks of begin and end, weighs nothing.
    """
    rows, columns = np.nonzero(np.arange(input_ids.shape[1]) < n_tokens[:, None])
    shape = (len(input_ids), int(input_ids.max(initial=0)) + 1)
    ones = np.ones(len(rows), dtype=np.float32)
    present = sp.csr_matrix((ones, (rows, input_ids[rows, columns])), shape=shape)  # sums tokens that repeat
    present.data[:] = 1
    texts_with = np.asarray(present[known].sum(0)).ravel()
    kept = np.flatnonzero(texts_with >= _FEWEST)
    rarity = np.log((n_tokens[known] > 0).sum() / texts_with[kept])
    weighted = present[:, kept] @ sp.diags_array(rarity.astype(np.float32))
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
    return sp.csr_matrix(sp.diags_array((1 / np.maximum(lengths, 1e-6)).astype(np.float32)) @ weighted)
