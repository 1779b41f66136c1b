"""What several backends ask of one library, ``torch.compile`` or xformers: does it run here, and how is it called?

May import pallatom and the declarations at the top of ``variants``; imports no backend and no other package of
``variants``. The libraries themselves are imported inside functions.
"""
