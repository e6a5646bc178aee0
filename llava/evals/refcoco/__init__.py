"""RefCOCO, RefCOCO+ and RefCOCOg (Kazemzadeh et al. 2014; Yu et al., arXiv 1608.00272): where is what a phrase names?

Questions, boxes and the score are those of XTuner 0.1.23 (``eval_refcoco.py``, ``refcoco_json.py``), on which its
RefCOCO recipe's numbers rest. These flaws of it are left out:

- It asks in vicuna's template whatever the model was trained with, and ends at ``</s>`` alone. Here a model is asked in
  its own template, with that one's stop words.
- It does not pad pictures, though training pads them. Here a picture is prepared as in training.
- Its sampler repeats the last samples so that ranks get equally many, and counts them twice. Here each row is answered
  and counted once.
- Its true boxes come from a float32 reciprocal, the boxes in training texts from a float64 division, so that a
  perfectly learned box on an exact hundredth differs by one. Here both are the same function.
- An answer with swapped corners can make the union 0, which ends it with ZeroDivisionError. Here such an answer is
  wrong, as it is there where it does not crash.
- It keeps answers in memory, writes no file, needs a process group even for one process, and ignores the options for
  template, folder, answer length and seed.
"""
