// The source line of an instruction, for the race checkers' messages.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <string>

// By addr2line where it is installed; `place` is a return address.
inline std::string source_line(const void* place) {
  Dl_info info;
  if (!dladdr(place, &info)) return "?";
  const auto offset =
      reinterpret_cast<uintptr_t>(place) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  char command[1024], answer[1024] = "";
  std::snprintf(command, sizeof(command), "addr2line -e '%s' 0x%lx 2>/dev/null", info.dli_fname,
                static_cast<unsigned long>(offset));
  if (FILE* pipe = popen(command, "r")) {
    if (!std::fgets(answer, sizeof(answer), pipe)) answer[0] = 0;
    pclose(pipe);
  }
  std::string text = answer;
  text = text.substr(0, text.find_first_of("\n "));
  const size_t slash = text.rfind('/');
  return slash == std::string::npos ? text : text.substr(slash + 1);
}
