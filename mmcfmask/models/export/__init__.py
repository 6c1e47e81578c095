"""Fine-tuned models for other libraries: open_clip, transformers, mmpretrain, and graphs of torch.export and ONNX."""
