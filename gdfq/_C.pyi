torch_version: str
compiler: str
parts: str
cuda_version: str | None
cuda_architectures: str | None
