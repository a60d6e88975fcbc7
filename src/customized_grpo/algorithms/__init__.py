"""The mathematics of Customized-GRPO: pure functions of tensors that import nothing but torch.

Shape letters used in this room: N samples (whole groups of G consecutive rows), B a batch of samples at one
denoising step, K rewards, T denoising steps. Where K is 2 the order is (prompt, identity).
"""
