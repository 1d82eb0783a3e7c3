import torch


def test_quotient_of_64_bit_numbers(standin):
    torch.manual_seed(0)
    exponents = [0, 1, 2, 20, 31, 32, 33, 47, 62, 63]
    edges = [2**e + d for e in exponents for d in (-1, 0, 1) if 0 < 2**e + d < 2**63]
    drawn = torch.randint(2**63 - 1, (3000,)) >> torch.randint(63, (3000,))
    values = torch.cat([torch.tensor(edges), drawn.clamp(min=1)])
    a = torch.cat([values.repeat_interleave(len(edges)), drawn])
    b = torch.cat([torch.tensor(edges).repeat(len(values)), drawn.flip(0).clamp(min=1)])
    results = torch.empty_like(a)
    standin.launch("quotients", a, b, results, len(a))
    assert torch.equal(results, a // b)
