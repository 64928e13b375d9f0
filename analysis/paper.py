"""What the paper reports (SPEC section 5): its Tables 1 and 2."""

# Practical time, a sum over examples of 500 tokens, on its GPU.
PAPER_TIME = {
    "saat_qk": 146.8,
    "saat_q": 143.4,
    "saat_sparse_strided": 143.4,
    "saat_sparse_fixed": 143.4,
    "saat_sign_alsh": 268.9,
    "saat_xbox": 235.5,
    "saat_qnf_xbox": 240.2,
    "saat_simple_lsh": 236.2,
    "saat_simple_alsh": 235.7,
    "saat_syn_dense": 111.0,
    "saat_syn_mdense": 130.5,
    "saat_syn_random": 116.8,
    "saat_ours": 116.8,
}

# Accuracy: speaker of an utterance, speaker of a frame, phoneme with one and with two hidden layers.
PAPER_ACCURACY = {
    "saat_mel": (0.0060, 0.0033, 0.5246, 0.5768),
    "saat_qk": (0.9926, 0.9824, 0.6460, 0.6887),
    "saat_q": (0.9898, 0.9622, 0.5893, 0.6345),
    "saat_sparse_strided": (0.9786, 0.9039, 0.6048, 0.6450),
    "saat_sparse_fixed": (0.9597, 0.7960, 0.6069, 0.6846),
    "saat_sign_alsh": (0.9716, 0.8237, 0.5863, 0.6393),
    "saat_xbox": (0.9639, 0.7994, 0.5860, 0.6262),
    "saat_qnf_xbox": (0.9667, 0.7958, 0.5819, 0.6241),
    "saat_simple_lsh": (0.9628, 0.7370, 0.5771, 0.6189),
    "saat_simple_alsh": (0.9678, 0.7999, 0.5783, 0.6214),
    "saat_syn_dense": (0.9660, 0.9027, 0.6180, 0.6287),
    "saat_syn_mdense": (0.9509, 0.9135, 0.6073, 0.6471),
    "saat_syn_random": (0.9803, 0.8868, 0.5820, 0.6237),
    "saat_ours": (0.9842, 0.9855, 0.6157, 0.6492),
}

# Fields where each algorithm had been applied before.
PAPER_FIELDS = {
    "saat_qk": "speech, CV, NLP",
    "saat_q": "CV, NLP",
    "saat_sparse_strided": "CV",
    "saat_sparse_fixed": "CV",
    "saat_sign_alsh": "recommender systems",
    "saat_xbox": "recommender systems",
    "saat_qnf_xbox": "recommender systems",
    "saat_simple_lsh": "recommender systems",
    "saat_simple_alsh": "recommender systems",
    "saat_syn_dense": "NLP",
    "saat_syn_mdense": "NLP",
    "saat_syn_random": "NLP",
    "saat_ours": "-",
}
