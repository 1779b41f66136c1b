"""What is asked for and what came out, as data: problems, records, profiles, places, and records compared.

One reader and one writer of JSON lines. May import ``ruler``; never torch.
"""
