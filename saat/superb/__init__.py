"""`saat superb`: S3PRL's own SUPERB tasks, in a checkout of S3PRL, with SUPERB's settings, into one table.

Each task is trained by S3PRL's run_downstream.py with S3PRL's config (frozen upstream, weighted sum of the hidden
states), once a learning rate; the best on dev is evaluated on test. Every result is kept, so that the same command goes
on where it stopped. Source: Yang et al., SUPERB, Interspeech 2021, and S3PRL's downstream/docs/superb.md.
"""
